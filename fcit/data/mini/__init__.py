"""The built-in data sets, rendered: images of a 4 x 4 grid with questions like those of the published ones."""
