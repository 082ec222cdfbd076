"""What leaves the project: a model folder with its card, ONNX, Content Credentials."""
