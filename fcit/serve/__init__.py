"""A server that answers as `fcit chat` does, by the interface that clients of OpenAI speak."""
