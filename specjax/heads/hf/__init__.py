"""Published layouts of draft heads: their tensors and configs, read and written."""
