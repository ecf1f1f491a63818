"""One file for each method; a file that is here is found, registered and tested."""
