/* An address that points at a folded line opens it, with the folds around it. */
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  if (target?.closest("details")) target.scrollIntoView();
}
document.addEventListener("DOMContentLoaded", unfold);
addEventListener("hashchange", unfold);
