"""Sample articles and questions for the demonstration."""
