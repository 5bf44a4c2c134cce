"""The factor language: a closed grammar over ``$fields``, checked before anything is executed."""
