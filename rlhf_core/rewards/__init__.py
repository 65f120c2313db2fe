"""What scores a response; composed and weighted."""
