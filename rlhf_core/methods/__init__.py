"""What training methods are called and made of: a row each. No torch here: settings, plans and forms read the rows too."""
