"""Arithmetic on the weights of models, tensor by tensor and file to file: no model is built, and memory stays small."""
