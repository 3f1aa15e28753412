"""The GPU backend: MLC's layouts as they lie on disk, TVM's schedules and attention kernels, no own ones."""
