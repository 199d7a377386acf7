"""What a GPU or TPU can tell about this project, in minutes: see `scripts/validate_hardware.sh`."""
