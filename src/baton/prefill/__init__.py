"""The prefiller: turns a segment with much left to feed into one with a single token left to feed, apart from the batch.

May never touch the batch or its rows, nor know policies; hands over whole segments."""
