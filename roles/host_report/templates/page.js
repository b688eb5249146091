"use strict";
(function () {
  var tools = document.getElementById("tools"), table = document.querySelector(".fleet");
  var body = table.tBodies[0], rows = Array.from(body.rows);
  var cards = Array.from(document.querySelectorAll("article.card"));
  if (!rows.length) return;
  var input = document.createElement("input"), said = document.createElement("span");
  var wanted = "", count = {};
  // A closed card is printed too.
  addEventListener("beforeprint", function () {
    cards.forEach(function (card) { card.firstElementChild.open = true; });
  });
  // A link into a card that is closed opens it.
  function open() {
    var there = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    var box = there && there.closest("details");
    if (box) { box.open = true; there.scrollIntoView(); }
  }
  addEventListener("hashchange", open);
  open();
  rows.forEach(function (row) { count[row.dataset.s] = (count[row.dataset.s] || 0) + 1; });
  if (rows.length > 5) {
    var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
    var pairs = rows.map(function (row, index) { return [row, cards[index], texts[index]]; });
    var buttons = [];
    function apply() {
      var words = input.value.toLowerCase().split(/\s+/), shown = 0;
      pairs.forEach(function (pair) {
        var fits = (!wanted || pair[0].dataset.s === wanted) &&
          words.every(function (word) { return pair[2].indexOf(word) >= 0; });
        pair[0].hidden = pair[1].hidden = !fits;
        shown += fits;
      });
      said.textContent = shown === rows.length ? "" : shown + " of " + rows.length;
    }
    input.type = "search";
    input.placeholder = "Filter: host, model, GPU";
    input.setAttribute("aria-label", "Filter the hosts");
    input.addEventListener("input", apply);
    said.setAttribute("role", "status");
    said.className = "m";
    tools.append(input);
    Object.keys(count).forEach(function (state) {
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = body.querySelector("tr[data-s=" + state + "] .b").textContent + " " + count[state];
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", function () {
        wanted = wanted === state ? "" : state;
        buttons.forEach(function (one) {
          one.setAttribute("aria-pressed", String(one === button && wanted === state));
        });
        apply();
      });
      buttons.push(button);
      tools.append(button);
    });
    tools.append(said);
    tools.hidden = false;
  }
  var order = new Intl.Collator("en", {numeric: true});
  Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") === "ascending";
      Array.from(head.parentNode.cells).forEach(function (one) { one.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.slice().sort(function (one, other) {
        var found = order.compare(one.cells[column].textContent, other.cells[column].textContent);
        return down ? -found : found;
      }).forEach(function (row) { body.append(row); });
    });
  });
})();
