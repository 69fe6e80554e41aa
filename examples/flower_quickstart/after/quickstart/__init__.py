"""Sites train one classifier together with Flower and PyTorch."""
