"""Several models behind one address: each in a process of its own, loaded when it is asked for.

Never imports torch and never looks into an answer: it finds the model's name in a request and passes bytes on.
"""
