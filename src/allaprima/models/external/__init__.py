"""Models that are called as a whole: diffusers pipelines of any family, and OpenAI-compatible servers."""
