"""How frozen weights are stored: one file per format, behind two functions that read and write a matrix."""
