// SPDX-License-Identifier: GPL-2.0
//! `make clean`.

use crate::prelude::*;

/// Removes what was built: here, and in the cache but for downloads.
pub fn clean(project: &Project) -> Result<()> {
    let _lock = project.lock()?;
    let folders = ["objects", "target", "bindgen-build"];
    let mut list = Vec::from(folders.map(|folder| project.cache.join(folder)));
    // This program runs from there.
    let built = paths_in(&project.build)?.into_iter();
    list.extend(built.filter(|path| !path.ends_with("target")));
    let all = paths_in(&project.root)?.into_iter();
    list.extend(all.filter(|path| is_left_by_kbuild(&name_of(path))));
    for path in list.iter().filter(|path| path.exists()) {
        match path.is_dir() {
            true => fs::remove_dir_all(path)?,
            false => fs::remove_file(path)?,
        }
    }
    println!(
        "clean: done; downloads, kernel trees and ccache stay in {}",
        project.cache
    );
    Ok(())
}

/// What an external module build leaves in the checkout.
fn is_left_by_kbuild(name: &str) -> bool {
    let ends = [".o", ".ko", ".mod", ".mod.c", ".rmeta", ".o.d"];
    name == "Module.symvers"
        || name == "modules.order"
        || ends.iter().any(|end| name.ends_with(end))
        || (name.starts_with('.') && name.ends_with(".cmd"))
}

#[cfg(test)]
mod tests {
    use super::is_left_by_kbuild as is_left;

    #[test]
    fn sources_are_not_left_behind_by_kbuild() {
        assert!(!["s390_iommu.rs", "Kbuild", ".gitignore"]
            .into_iter()
            .any(is_left));
        assert!(["s390_iommu.mod.c", ".s390_iommu.o.cmd"]
            .into_iter()
            .all(is_left));
    }
}
