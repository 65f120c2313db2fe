"""Credit below the response: what parts of it have earned. Pure where the maths is; no model is loaded here."""
