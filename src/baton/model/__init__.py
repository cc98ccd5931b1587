"""Stock Hugging Face models behind one call: load, probe, feed tokens into a rectangle's rows, draw the next ones.

The only room that knows transformers; may never know queries' lives, policies or HTTP.
"""
