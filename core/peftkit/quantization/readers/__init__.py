"""Packed layers of other libraries, one short file each: how such a layer is asked for its weight."""
