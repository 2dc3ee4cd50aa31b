"""What requests and answers of models say: kinds of bodies, their parameters, tokens."""
