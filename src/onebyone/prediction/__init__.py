"""Prediction in one step: from a classifier and pictures to boxes, heat maps and drawings."""
