"""The libraries whose adapter folders are read: a file each, with the names that the library has for things."""
