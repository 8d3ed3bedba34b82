"""The only reader of raw objects: decodes them, sets bad ones aside, holds the good ones in the Store."""
