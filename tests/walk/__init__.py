"""The walk of combinations: each attention with each position, norm and topology composes, or is refused with why."""
