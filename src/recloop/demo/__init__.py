"""The demo: the whole loop as a project like any other, on a grocery chain's year or on the seeded world."""
