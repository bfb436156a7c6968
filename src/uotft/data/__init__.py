"""Images in: data sets, archives, downloads, the pixel cache, overlap, subsets."""
