"""Networks that sit beside a model's own and change what it says."""
