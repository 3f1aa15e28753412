"""Makes what a device boots: disk images, update bundles, containers and packages.

`build.build_image` is the recipe.

This file stays empty of imports: every program in the toolbox is started through a module of this package.
"""
