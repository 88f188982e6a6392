"""Pictures: rendered flowers with known evidence, handwritten digits, and the user's own."""
