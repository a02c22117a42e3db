"""Faces come in: pictures, video, finders, the crop contract, degradation, data sets."""
