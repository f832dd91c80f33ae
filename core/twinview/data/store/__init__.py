"""What lies on disk: tars, their indexes, folders of images."""
