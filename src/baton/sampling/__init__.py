"""The next token of each row: penalties, masks, filters and noise, on the host and on the device.

May never know models, rows or queries' lives; a draw depends on one row alone.
"""
