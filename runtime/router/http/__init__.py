"""HTTP/1.1 on both sides: strict in, canonical out."""
