"""The training engine: no padding, shared beginnings computed once, and no work that the loss does not need."""
