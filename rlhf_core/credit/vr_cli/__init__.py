"""VR-CLI: a response is a plan, and worth what it makes a known completion likelier under a frozen model. Source: arXiv 2503.22828, vrcli.md."""
