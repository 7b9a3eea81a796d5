"""What leaves the house: a bundle of files that run no code, a predictor over it, ONNX. Import from its modules."""

__all__ = []
