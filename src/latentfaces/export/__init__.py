"""Export: model folder with its card, ONNX, Content Credentials."""
