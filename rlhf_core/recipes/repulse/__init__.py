"""RePULSe beside the online loop: a second policy that finds bad responses, and what both learn from them."""
