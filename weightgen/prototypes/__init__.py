"""Parts of the prototype generator: what it reads from an encoder, what it remembers, and how it writes an adapter."""
