"""An embeddings API over HTTP, as OpenAI's clients speak it: the optional extra ``serve``."""
