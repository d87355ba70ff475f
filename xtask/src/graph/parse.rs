//! The files of a crate, and whom each imports.
//!
//! In       the `src` folder of a crate.
//! Out      a [`Crate`]: every file of the product, the files that it names, and where.
//! Limits   a name that a macro makes is not seen; a name that a module only hands on counts as
//!          that module's.
//! Not here what the imports mean (`mod`), code under `#[cfg(test)]`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::Visit;
use syn::{Attribute, Item, UseTree};

use crate::shell::Result;

/// One file of the product.
#[derive(Debug, Default)]
pub(crate) struct File {
    /// From the `src` folder on.
    pub(crate) path: String,
    /// Files that it names, by number, and the first line that does.
    pub(crate) imports: BTreeMap<usize, usize>,
    /// Functions: name, first line, number of lines.
    pub(crate) functions: Vec<(String, usize, usize)>,
}

/// The files of a crate, in the order of their modules.
#[derive(Debug, Default)]
pub(crate) struct Crate {
    pub(crate) files: Vec<File>,
}

/// A module of a file: its place in the tree, and its number among the files.
struct Module {
    path: Vec<String>,
    file: usize,
    code: syn::File,
}

/// Reads a crate from its `lib.rs`.
pub(crate) fn read(src: &Path) -> Result<Crate> {
    let mut modules = Vec::new();
    let mut files = Vec::new();
    read_module(
        src,
        &src.join("lib.rs"),
        Vec::new(),
        &mut files,
        &mut modules,
    )?;
    let by_path: BTreeMap<&[String], usize> = modules
        .iter()
        .map(|module| (module.path.as_slice(), module.file))
        .collect();
    for module in &modules {
        let mut names = Names {
            here: &module.path,
            by_path: &by_path,
            own: module.file,
            found: BTreeMap::new(),
            functions: Vec::new(),
        };
        names.visit_file(&module.code);
        let Names {
            found, functions, ..
        } = names;
        if let Some(file) = files.get_mut(module.file) {
            file.imports = found;
            file.functions = functions;
        }
    }
    Ok(Crate { files })
}

fn read_module(
    src: &Path,
    path: &Path,
    place: Vec<String>,
    files: &mut Vec<File>,
    modules: &mut Vec<Module>,
) -> Result {
    let text = fs::read_to_string(path)?;
    let code = syn::parse_file(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let file = files.len();
    files.push(File {
        path: path.strip_prefix(src)?.to_string_lossy().into_owned(),
        ..File::default()
    });
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let own = path.parent().unwrap_or(src);
    let below: PathBuf = match &*stem {
        "lib" | "mod" => own.to_path_buf(),
        name => own.join(name),
    };
    for item in &code.items {
        let Item::Mod(module) = item else { continue };
        if module.content.is_some() || is_test(&module.attrs) {
            continue;
        }
        let name = module.ident.to_string();
        let found = [
            below.join(format!("{name}.rs")),
            below.join(&name).join("mod.rs"),
        ]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{}: no file for mod {name}", path.display()))?;
        let place = [place.as_slice(), &[name]].concat();
        read_module(src, &found, place, files, modules)?;
    }
    modules.push(Module {
        path: place,
        file,
        code,
    });
    Ok(())
}

/// Whether an item is left out of the product: its `cfg` speaks of tests.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg = attribute.path().is_ident("cfg");
        let list = attribute.meta.require_list();
        is_cfg && list.is_ok_and(|list| names_test(list.tokens.clone()))
            || attribute.path().is_ident("test")
    })
}

/// `test`, and `any(test, …)`, but not `not(test)`.
fn names_test(tokens: TokenStream) -> bool {
    let mut negated = false;
    for tree in tokens {
        match tree {
            TokenTree::Ident(word) if word == "not" => negated = true,
            TokenTree::Ident(word) if word == "test" => return true,
            TokenTree::Group(_) if negated => negated = false,
            TokenTree::Group(group) if names_test(group.stream()) => return true,
            _ => {}
        }
    }
    false
}

/// Collects what the code of a file names.
struct Names<'a> {
    here: &'a [String],
    by_path: &'a BTreeMap<&'a [String], usize>,
    own: usize,
    found: BTreeMap<usize, usize>,
    functions: Vec<(String, usize, usize)>,
}

impl Names<'_> {
    /// Finds the file of the longest module that begins `words`, as seen from this module.
    fn name(&mut self, words: &[String], line: usize) {
        let Some(first) = words.first() else { return };
        let mut place = match first.as_str() {
            "crate" => Vec::new(),
            _ => self.here.to_vec(),
        };
        let mut is_module = matches!(first.as_str(), "crate" | "self" | "super");
        for word in words {
            match word.as_str() {
                "crate" | "self" => {}
                "super" => drop(place.pop()),
                name => {
                    place.push(name.to_owned());
                    if !self.by_path.contains_key(place.as_slice()) {
                        place.pop();
                        break;
                    }
                    is_module = true;
                }
            }
        }
        let file = self.by_path.get(place.as_slice()).copied();
        if let Some(file) = file.filter(|file| is_module && *file != self.own) {
            self.found.entry(file).or_insert(line);
        }
    }

    fn name_use(&mut self, tree: &UseTree, before: &[String]) {
        match tree {
            UseTree::Path(path) => {
                let words = [before, &[path.ident.to_string()]].concat();
                self.name_use(&path.tree, &words);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.name_use(tree, before);
                }
            }
            UseTree::Name(name) => self.name_leaf(before, &name.ident),
            UseTree::Rename(name) => self.name_leaf(before, &name.ident),
            _ => self.name(before, tree.span().start().line),
        }
    }

    fn name_leaf(&mut self, before: &[String], name: &syn::Ident) {
        let words = [before, &[name.to_string()]].concat();
        self.name(&words, name.span().start().line);
    }

    fn add_function(&mut self, name: &syn::Ident, span: proc_macro2::Span) {
        let (first, last) = (span.start().line, span.end().line);
        self.functions
            .push((name.to_string(), first, last + 1 - first));
    }

    /// Paths that begin with `crate` or `super` inside the tokens of a macro.
    fn name_tokens(&mut self, tokens: TokenStream) {
        let mut words: Vec<String> = Vec::new();
        for tree in tokens {
            match tree {
                TokenTree::Ident(word) => {
                    let word = word.to_string();
                    if matches!(word.as_str(), "crate" | "super") && words.is_empty()
                        || !words.is_empty()
                    {
                        words.push(word);
                    }
                    continue;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => continue,
                TokenTree::Group(group) => self.name_tokens(group.stream()),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            self.name(&std::mem::take(&mut words), 0);
        }
        self.name(&words, 0);
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_test(&function.attrs) {
            self.add_function(&function.sig.ident, function.span());
            syn::visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add_function(&function.sig.ident, function.span());
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.name_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words: Vec<String> = path
            .segments
            .iter()
            .map(|it| it.ident.to_string())
            .collect();
        if words.len() > 1 {
            self.name(&words, path.span().start().line);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.name_tokens(call.tokens.clone());
        syn::visit::visit_macro(self, call);
    }
}
