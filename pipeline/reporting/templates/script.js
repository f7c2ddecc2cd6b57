"use strict";
for (const gallery of document.querySelectorAll(".gallery")) {
  const form = gallery.querySelector(".filters");
  const pictures = [...gallery.querySelectorAll(".pictures > li")];
  const count = gallery.querySelector(".count");
  const controls = [...form.querySelectorAll("[data-facet]")];
  const dialog = gallery.querySelector("dialog");
  const shown = dialog.querySelector(".shown");
  let current = null;

  const fits = (picture, control) => {
    const value = picture.getAttribute("data-" + control.dataset.facet);
    if (control.type === "range") return Number(value) >= Number(control.value);
    if ("grouped" in control.dataset && value.startsWith(control.value + ": ")) return true;
    return control.value === "" || value === control.value;
  };
  const filter = () => {
    let left = 0;
    for (const picture of pictures) {
      picture.hidden = !controls.every((control) => fits(picture, control));
      left += picture.hidden ? 0 : 1;
    }
    for (const control of controls) {
      if (control.type === "range") control.nextElementSibling.value = Number(control.value).toFixed(2);
    }
    count.textContent = left + " of " + pictures.length + " pictures";
  };
  const enlarge = (picture) => {
    current = picture;
    const figure = picture.querySelector("figure").cloneNode(true);
    figure.querySelector("button").replaceWith(figure.querySelector("button img"));
    shown.replaceChildren(figure);
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const visible = pictures.filter((picture) => !picture.hidden);
    const next = visible[visible.indexOf(current) + by];
    if (next) enlarge(next);
  };

  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const picture of pictures) {
    picture.querySelector(".enlarge").addEventListener("click", () => enlarge(picture));
  }
  dialog.querySelector(".before").addEventListener("click", () => step(-1));
  dialog.querySelector(".after").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("close", () => {
    if (current) current.querySelector(".enlarge").focus();
  });
  filter();
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll(".wide > details:not([open])")]
    .filter((one) => one.querySelectorAll("tr").length <= 60);
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
