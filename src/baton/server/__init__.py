"""The HTTP server: OpenAI's routes, the chat page, and the process that serves them.

May never import another room of the roof, torch or transformers; it sees the ground and `engine.client`.
"""
