"""The prefiller: makes of a segment with much left to feed one with a single token left, apart from the batch.

May never touch the batch or its rows, nor know policies; hands over whole segments."""
