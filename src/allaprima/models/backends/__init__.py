"""Networks compiled for a CPU: OpenVINO and ONNX Runtime behind the call of the torch network."""
