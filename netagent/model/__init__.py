"""The nouns: what the API says (objects) and the addresses and protocols that everything is made of."""
