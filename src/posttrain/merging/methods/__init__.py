"""The methods of merging, one file each: what becomes of one tensor of several models."""
