"""The vocabulary: schemes, results, heatmaps, metrics, file formats, drawing."""
