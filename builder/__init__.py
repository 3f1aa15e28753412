"""Makes what the device runs: compiled models and disk images. Never imports `appliance`."""
