"""Updates of a device that was flashed: one signed file goes into the slot that does not run, and is tried.

bundle    what is in a file, and whether all of it is as it was signed
verdict   whether this device takes it
slots     the two slots and what runs, as RAUC tells
record    what was tried and how it ended, kept over restarts
install   the way of a file into the other slot (root)
gate      the question that a new system must answer (root)
arrivals  files that came by upload, on a stick or over the network (service)
offer     what an address has, and `newest` whether that is newer than what runs (service)
work      the one update that is under way (service)
story     how the last one went, for people
"""
