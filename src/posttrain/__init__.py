"""posttrain: change what a language model says after its makers have let it go, and prove what the change did."""

__version__ = "0.1.0"
