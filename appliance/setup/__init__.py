"""The settings of a device of its own: what a person writes onto the boot partition, put into effect.

Runs as root, before the service. `wishes` says what may be written, `imager` understands what Raspberry Pi
Imager writes, `takeover` carries it over into the `state` on the data partition, `apply` puts the state into
effect, and `network` sees to it that the device is on some network.
"""
